# Registers the layers and backbones of this package where a config is read without its tools (mim, upstream's tools).
custom_imports = dict(imports=['mmkerneldna'], allow_failed_imports=False)
