"""The steps of recipes: one function a file, which takes a model and a step's settings and gives a model."""
