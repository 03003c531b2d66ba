"""Texts, pairs and chats to token ids, with the bytes that each token covers."""
