"""What is done to a whole store: told, verified, repaired, joined, handed on."""
