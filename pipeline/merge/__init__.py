"""Outcomes and rows to output: collecting a batch's results, typed answers, and the merge."""
