"""batchmill: run a prompt over a whole corpus through the Azure OpenAI Batch API."""

__version__ = "0.1.0"

__all__ = ["__version__"]
