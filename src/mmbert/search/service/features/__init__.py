"""What the service can be asked, one file each, found by name.

A feature is a module with

- ``missing(model)``: why this model cannot do it, or None when it can;
- ``add(app, service, model)``: adds its routes below ``/v1``, which ``model`` answers, and with ``service.batcher.add``
  what computes requests of its kind together;
- ``PATHS``: these routes as (method, path), so that a service without the feature answers them with 501 and the reason;

and, where it applies,

- ``NEEDS_NETWORK = True``: it looks into PyTorch's network, which an exported model has not;
- ``OF_THE_INDEX = True``: only the model that made the index can answer;
- ``languages(model)``: the languages that it writes.
"""
