"""An Azure OpenAI Files + Batches service on loopback.

Imports nothing else of this project: it is a second reading of the service's contract, and one misreading must not
pass on both sides.
"""
