"""The OpenAPI document: what describes each route, and how that becomes JSON."""
