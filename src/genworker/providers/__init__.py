"""Endpoints: adapters from a completion request to the official SDKs, and a deterministic fake."""
