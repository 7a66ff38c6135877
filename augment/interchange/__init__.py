"""Texts that are made elsewhere: calls written as batch files, and answers, texts and groups read back."""
