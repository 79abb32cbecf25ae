"""Views of a `Report`: a terminal table, a GitHub table, and a self-contained HTML page. No module here measures."""

from zeropoint.render.markdown import markdown
from zeropoint.render.page import page, write_page
from zeropoint.render.terminal import terminal

__all__ = ["markdown", "page", "terminal", "write_page"]
