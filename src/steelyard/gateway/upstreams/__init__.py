"""What can answer a request: our engine, or any server that speaks OpenAI's protocol."""
