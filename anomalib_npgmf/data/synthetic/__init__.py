"""Drawn images in the layout of MVTec LOCO AD, for trying a method without a download.

:mod:`.datamodule` holds the data module; the drawing below it (:mod:`.writer`, :mod:`.scene`) needs numpy and OpenCV
only.
"""
