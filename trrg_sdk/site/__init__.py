"""On site: folders of DICOM in, reports that a PACS accepts out."""
