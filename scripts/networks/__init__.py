"""Tensors -> tensors: the frame encoder and its weights, temporal heads, the classifier of both."""
