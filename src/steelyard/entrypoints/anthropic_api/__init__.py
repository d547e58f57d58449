"""What is Anthropic's own at the edge: its errors. Its requests are workloads like any other."""
