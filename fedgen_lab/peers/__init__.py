"""PDFed's peers: a contract, models found by their content, and training without a server (arXiv 2409.18245)."""
