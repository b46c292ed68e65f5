"""The networks of the paper: generator, token summary, vocabulary, BERT."""
