"""The generated shapes data set and checks of any data set before training."""
