"""The quickstart: the sentiment experiment of the DPO paper (Sec. 6.1), small enough for a laptop."""
