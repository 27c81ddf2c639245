"""What a model can do: its LM head, its vocabulary and its positions."""
