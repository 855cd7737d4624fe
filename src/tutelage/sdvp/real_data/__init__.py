"""SDVP on the official folders of GQA and NLVR2."""
