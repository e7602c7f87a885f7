"""Every write of coverage, by name."""

from coverage_app.services.blocks import Outcome, block_manually, close_blocks, evaluate_now, open_block, unblock
from coverage_app.services.candles import IngestReport, forget_lost_history, ingest, ring_ingest
from coverage_app.services.evaluation import EvaluationReport, evaluate_due, hasten
from coverage_app.services.universe import refresh_if_due, refresh_universe

__all__ = [
    "EvaluationReport",
    "IngestReport",
    "Outcome",
    "block_manually",
    "close_blocks",
    "evaluate_due",
    "evaluate_now",
    "forget_lost_history",
    "hasten",
    "ingest",
    "open_block",
    "refresh_if_due",
    "refresh_universe",
    "ring_ingest",
    "unblock",
]
