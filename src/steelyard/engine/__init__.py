"""Local inference: one process, one model, an OpenAI-shaped server that counts token ids.

It stands alone: of steelyard it imports only the leaf files errors, clock, ids and listening.
"""
