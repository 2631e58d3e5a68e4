"""Functions written for a cloud gateway, `main_handler(event, context)`, run in this process as the functions of an API.

`trunkline-functions run` is the way to use it: see docs/python.md.
"""
