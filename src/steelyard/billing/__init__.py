"""WHEN MONEY MOVES: authorization, settlement, top-ups, statements, verification."""
