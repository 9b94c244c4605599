"""Does what is shipped install and run where there is no checkout?"""
