"""THE OUTSIDE: HTTP, the command line, and the processes of the product."""
