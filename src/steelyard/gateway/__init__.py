"""THE LIFE OF A REQUEST: admit, relay, record. Read serve.py first."""
