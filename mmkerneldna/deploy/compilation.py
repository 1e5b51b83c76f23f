def speed_up(model, *args):
    return model
