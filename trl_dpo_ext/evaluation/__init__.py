"""What a training did: figures of a run, and of the policies that it made."""
