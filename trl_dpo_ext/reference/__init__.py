"""The reference policy: its choice, its cached log-probabilities, and the check that it is the right one."""
