"""What the service can be asked, one file each, found by name.

A feature is a module with

- ``missing(model)``: why this model cannot do it, or None when it can;
- ``add(app, service)``: adds its routes below ``/v1``, and with ``service.batcher.add`` what computes requests of its
  kind together;
- ``NEEDS_NETWORK``: True where it looks into PyTorch's network, which an exported model has not (may be left out);
- ``PATHS``: these routes as (method, path), so that a model without the feature answers them with 501 and the reason.
"""
