"""The golden messages of proto/vectors, built without the codec that they test."""
