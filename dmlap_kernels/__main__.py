"""``python -m dmlap_kernels`` is the ``dmlap`` command."""

from __future__ import annotations

import sys

from dmlap_kernels.cli import main

sys.exit(main())
