"""Score-based generative modelling with SDEs and ODEs: train, sample, encode, and compute exact likelihoods."""
