"""Conversations before they are rendered: one form of tool data, and what of it a chat template keeps."""
