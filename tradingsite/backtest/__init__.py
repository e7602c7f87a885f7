"""Walk-forward backtest: what the bot would have learnt, promoted and traded, by the code that does it live."""
