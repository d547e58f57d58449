"""WHERE MONEY IS: double entry. Pure, but for its store protocol."""
