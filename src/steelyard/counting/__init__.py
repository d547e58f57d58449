"""How tokens are counted: pinned tokenizers, their proof, and the second count of an answer.

The only package that reads tokenizer files, and the only one that imports libraries that tokenize.
It knows nothing of tenants or money.
"""
