"""The candle store, gap maths and paging. No Django here."""
