"""Rows to shards and request files.

Owns the way from the source to sealed shards and request lines: prompt, template, packer, writer. Speaks to no
network, and knows nothing of `submit` and `merge`.
"""
