"""A `Report` as a terminal table, a GitHub table or one self-contained HTML page. Nothing is measured here."""

from zeropoint.render.markdown import markdown
from zeropoint.render.page import page, write_page
from zeropoint.render.terminal import terminal

__all__ = ["markdown", "page", "terminal", "write_page"]
