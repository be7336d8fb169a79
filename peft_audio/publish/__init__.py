"""Export adapters and push them to the Hub."""
