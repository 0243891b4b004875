"""What a hospital runs: folders of DICOM in, draft reports out."""
