"""The reference policy: which one it is, its cached log-probabilities, and the check that it is the right one."""
