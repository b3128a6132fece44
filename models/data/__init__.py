"""Text: documents, their tokens, and windows of them."""
