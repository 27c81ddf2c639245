"""Everything that has to be checked and measured on a GPU, in one command of eight minutes."""
