// Office files that start something as soon as they are opened.

rule Office_Macro_Starts_Program
{
    meta:
        description = "VBA that runs by itself and starts a program or fetches a file"
    strings:
        $auto1 = "AutoOpen" ascii wide nocase fullword
        $auto2 = "Auto_Open" ascii wide nocase fullword
        $auto3 = "Document_Open" ascii wide nocase fullword
        $auto4 = "Workbook_Open" ascii wide nocase fullword
        $start1 = "WScript.Shell" ascii wide nocase
        $start2 = "URLDownloadToFile" ascii wide nocase
        $start3 = "powershell" ascii wide nocase
        $start4 = "MSXML2.XMLHTTP" ascii wide nocase
        $start5 = "mshta" ascii wide nocase fullword
        $vba1 = "Attribut" ascii
        $vba2 = "VBA_PROJECT" ascii wide
    condition:
        uint32be(0) == 0xD0CF11E0 and any of ($vba*) and any of ($auto*) and any of ($start*)
}

rule Office_Dynamic_Data_Exchange
{
    meta:
        description = "A Word field that runs a command line (DDEAUTO)"
    strings:
        $field = /<w:instrText[^>]{0,80}>\s{0,8}DDE(AUTO)?\s[^<]{0,200}(cmd|powershell|mshta|wscript)/ nocase
    condition:
        $field
}

rule Rtf_Equation_Object_Updates_Itself
{
    meta:
        description = "RTF with an equation object that loads by itself (CVE-2017-11882)"
    strings:
        $update = "\\objupdate" ascii
        $class = "4571756174696f6e2e33" ascii nocase
    condition:
        uint32be(0) == 0x7B5C7274 and all of them
}

rule Shortcut_Starts_Script_Host
{
    meta:
        description = "A Windows shortcut whose command line hides or fetches something"
    strings:
        $host1 = "powershell" ascii wide nocase
        $host2 = "mshta" ascii wide nocase fullword
        $host3 = "wscript" ascii wide nocase fullword
        $how1 = "-enc" ascii wide nocase
        $how2 = "hidden" ascii wide nocase fullword
        $how3 = "http" ascii wide nocase
    condition:
        uint32be(0) == 0x4C000000 and uint32be(4) == 0x01140200
        and any of ($host*) and any of ($how*)
}
