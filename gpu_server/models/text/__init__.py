"""The built-in text model: any Hugging Face encoder, run without padding. Importable without torch."""
