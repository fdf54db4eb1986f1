from planner.checkpoint.describe import meta_model
from planner.checkpoint.known import class_name


def build_skeleton(files):
    return meta_model(class_name(files.config), files.config, files.config_path)
