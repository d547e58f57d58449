"""Work of the engine that is not text from text: speech that is written down, pictures that are drawn."""
