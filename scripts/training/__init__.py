"""What the MONAI engines need: batches to networks, handlers, checks, controls."""
