"""Text data: files of pairs, conversations or plain text, as the batches that a language model trains on."""
